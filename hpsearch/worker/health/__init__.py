"""Whether a worker is alive and makes progress, and what it does when something fails (`failures`, `out_of_memory`).

For the processes that restart it and the people who watch it. The worker comes in with its state and its counts. A life
sign (health file), metrics over HTTP, and the watchdog's verdict go out.
"""
