// Package netns makes hosts out of this machine for tests: each is a network namespace with an address, a mount namespace
// and processes of its own, and all are joined by one wire, which the test process itself carries. So it can cut the wire,
// lose packets and let them arrive late, between any two hosts and in each direction, by a seed and without what a kernel
// may lack (netem, nft). Nothing has a name that could outlive the test: when it ends, however it ends, the kernel takes
// hosts, mounts and processes away. It knows nothing of what runs on the hosts: give Host.Do to a Process of package
// processes as its On. It needs Linux and root, and skips the test
// that asks for it, with the reason, where it has not got them. Start at New; wire.go carries the packets.
package netns
