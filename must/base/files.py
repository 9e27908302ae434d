"""Names of the files and folders that several rooms know. What one room alone reads and writes is named there."""

INDEX_FILE = "index.json"  # of a folder of shards
CLASSIFIER_FILE = "classifier.safetensors"  # where a stage writes one into a folder
WEIGHTS_FILE, DESCRIPTION_FILE = "model.safetensors", "model.json"  # a bundle's
ADAPTED = "adapted"  # folder of the bundle with all of an adaptation, in that of the one that keeps a part of it
LAST_FILE = "LAST"  # names the newest checkpoint
METRICS_FILE, PREDICTIONS_FILE, REPORT_FILE = "metrics.json", "predictions.csv", "report.html"
ONNX_FILE, CARD_FILE = "model.onnx", "MODEL_CARD.md"  # an export's
LONGEST_CARD = 5000  # characters of the card that others' registries take as a description
MODEL_FOLDER_FILE = "open_clip_config.json"  # of a model folder as open_clip writes it
VERSION_FILE = "version.json"  # of a version in the registry
JOURNAL_FILE = ".must-sort.jsonl"  # in a folder that `must sort` filled: what came from where
RECORD_FILE = "adapt.json"  # of what `must adapt` makes
REFINED_FILE = "refined.json"  # beside predictions.csv, of `must refine`
ANSWERS_FILE = "answers.jsonl"  # of `must review`
