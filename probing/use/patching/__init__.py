"""States of one prompt put into another, and parts taken out: tables and heat maps, no verdict."""
