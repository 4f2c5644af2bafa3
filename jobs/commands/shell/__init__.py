"""Answers to a shell that asks the commands which words there are."""
