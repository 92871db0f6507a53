"""The attention engine: requests and edits become a plan that runs inside the model's own attention calls."""
