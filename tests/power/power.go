// Package power holds the tests that need root and a disk of their own: power cuts, full disks and failing syncs
// on a loop-mounted ext4. They ask the store after each what it kept. They touch nothing but their own mounts below
// the test's directory. Start at power_test.go; `make test-net` runs them with the build tag power, and with it
// those of tests/e2e that put a sidecar's journal on a Disk.
package power
