"""Two TUF repositories that must agree: what publishers sign, and what the director wants."""
