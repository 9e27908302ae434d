"""Names of files and folders that several packages use. A name that only one package uses is defined there."""

INDEX_FILE = "index.json"  # of a folder of shards
CLASSIFIER_FILE = "classifier.safetensors"  # in a folder that a stage writes
WEIGHTS_FILE, DESCRIPTION_FILE = "model.safetensors", "model.json"  # a bundle's
NEXT_DESCRIPTION_FILE = "model.next.json"  # there while a bundle is written
ADAPTED = "adapted"  # folder with the fully adapted bundle (alpha 1), inside a bundle with another alpha
CHECKPOINTS = "checkpoints"  # folder of a training, in its output
LAST_FILE = "LAST"  # names the newest checkpoint
METRICS_FILE, PREDICTIONS_FILE, REPORT_FILE = "metrics.json", "predictions.csv", "report.html"
ONNX_FILE, CARD_FILE = "model.onnx", "MODEL_CARD.md"  # an export's
MODEL_FOLDER_FILE = "open_clip_config.json"  # of a model folder as open_clip writes it
VERSION_FILE = "version.json"  # of a version in the registry
RECORD_FILE = "adapt.json"  # of `must adapt`
REFINED_FILE = "refined.json"  # of `must refine`, beside predictions.csv
ANSWERS_FILE = "answers.jsonl"  # of `must review`
