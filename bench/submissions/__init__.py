"""Archives, intake and templates of submissions."""
