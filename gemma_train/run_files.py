"""The names of what a run keeps in its folder."""

RECORD = "config.py"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
STACKS = "stacks-{}.txt"  # of a process that hung: where its threads were
CHECKPOINTS = "checkpoints"
RETURN = "return.json"  # beside them: where a run goes on that went back for bad steps
ENCODER = "encoder"  # the frozen one of a model that sees images
STATE = "state"  # what a checkpoint of them holds
TOKENIZER = "tokenizer.model"
TEACHER = "teacher.json"  # who teaches it in its step
ENCODER_RECORD = "encoder.json"  # whose embeddings of images it has seen
SUMMARY = "summary.json"
SAMPLE = "sample.txt"
CAPTIONS = "captions.json"  # what it said of held-out images
CONTEXT = "context.json"  # what it makes of a long context
REPORT = "report.html"
