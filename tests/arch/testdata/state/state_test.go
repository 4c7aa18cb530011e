package state

var seen = map[string]bool{}
