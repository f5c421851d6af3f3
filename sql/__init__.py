"""Every statement that makes, shows or checks a table; a path is a name."""
