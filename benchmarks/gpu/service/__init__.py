"""Does the real service hold on the device: golden answers, killed workers, lack of memory, two workers on a card."""
