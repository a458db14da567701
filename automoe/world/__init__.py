"""The embedded driving world: towns, traffic, sensors, and writers of data sets in their official raw formats."""
