"""What lies under all rooms: work in a process of its own, imports and packages, and the private names of Ray that
raymb uses.

May import errors.
"""
