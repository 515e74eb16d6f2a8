"""Steps of a campaign that do one thing each, most of them wrong."""
