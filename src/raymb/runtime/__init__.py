"""What lies under all rooms: work in a process of its own, which distribution a package is of, and the private names of
Ray that raymb uses.

May import errors.
"""
