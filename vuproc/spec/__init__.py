"""The numbers and layouts of the specifications, as data; nothing here acts."""
