"""`flotilla keys`: the publisher's offline keys."""
