"""The compute: worker processes and the versioned evaluation packages. Imports nothing of `service`."""
