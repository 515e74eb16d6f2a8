"""The API key of the real service that this folder's tests share."""

CANARY_API_KEY = "canary-api-key-4711"
