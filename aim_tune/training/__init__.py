"""Training: ONE loop for every arm (`loop.fit`); it never knows which arm it trains.

Schedules and step counts (`schedules`) are plain arithmetic and import no torch.
"""
