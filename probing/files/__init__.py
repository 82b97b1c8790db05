"""Files that are written whole, and JSON and YAML as strangers may send them."""
