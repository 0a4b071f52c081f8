"""What a verb does once its config has been checked. Torch and Lightning are imported from here on."""
