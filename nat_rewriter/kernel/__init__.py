"""All that needs Linux or privilege, one edge a file."""
