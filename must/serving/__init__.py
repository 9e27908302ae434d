"""A server of exported models: images in, class names out, over HTTP (the open inference protocol, v2)."""
