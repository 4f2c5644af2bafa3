"""What servers of this machine share: who is let in, by which names, and how long is waited for whom."""
