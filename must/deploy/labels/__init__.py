"""Labels by a model or by people, converted to files of other tools, or to folders of sorted images."""
