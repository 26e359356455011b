"""The subcommands of `colqueue`, a module each: its arguments, and what it prints."""
