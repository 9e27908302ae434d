"""After evaluation: may the new model take over, where models live, and how to go back."""
