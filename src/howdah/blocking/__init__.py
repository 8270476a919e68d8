"""The blocking face: twins of the async classes, made by ``tools/blocking.py``, over a runner.

On an engine that never waits a call runs to its end in the caller's thread; on the others it goes to an event loop in a
thread of its own.
"""
