"""Words of the command line that its parser knows before any command is imported."""

DYNAMICS = ("import", "compare", "spikes")  # what is done with training dynamics, of no single run
LOGS = ("cartography", "steps", "logits")  # logs of other tools
STAGES = {
    "train": "train the model and its clean twin",
    "audit": "measure the failure",
    "trace": "score every training row and write the edit; or ask an index of your own (`uimjax new trace`)",
    "mitigate": "carry the edit out, with controls, and give the verdict",
}
PARTS = ("vision", "text")
TABLES = (".npz", ".parquet", ".jsonl", ".csv", ".tsv")  # of features or logits, for `mitigate`
