// Package e2e holds the tests with real processes: services, a sidecar beside each, kill -9, and afterwards a look
// into the services' own files. It decides nothing and imports nothing of ours but the disk of tests/power: what it
// knows of a sidecar it learns from the command line, the ready line, the API and the wire. Start at mesh_test.go for
// how the processes hang together, at transfer_test.go for the first of the tests; participant is the service that
// they script.
package e2e
