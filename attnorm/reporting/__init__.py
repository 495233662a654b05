"""What people look at: tables, pages and pictures of runs that were trained elsewhere."""
