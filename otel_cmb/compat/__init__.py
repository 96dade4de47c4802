"""Drop-in classes: an application changes one import and keeps its calls."""
