"""One module for each family, with its part of the table: name -> how to make it."""
