"""Labels, by a model or by people, as files: in the formats of other tools, and as folders of sorted images."""
