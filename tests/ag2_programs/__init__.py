"""What the AG2 tests share: a scripted model, an instrumented process, and a way to count what was recorded."""
