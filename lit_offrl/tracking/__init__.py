"""What goes to MLflow while a run trains: what has yet to be sent, and the thread that sends it."""
