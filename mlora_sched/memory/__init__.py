"""What training takes of a device's memory: estimated (`formula`), traced, measured and corrected, budgeted.

Modules that the daemon and the server need hold no tensor; those that need torch say so in their first lines.
"""
