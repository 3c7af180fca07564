"""The hot loops over weights, behind one dispatch module (`ops`) with pure torch as the specification (`reference`)."""
