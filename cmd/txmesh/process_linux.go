package main

import "syscall"

// ownGroup keeps Ctrl-C away from a child, which its parent ends in its own order, and has the kernel end the child
// if the parent is killed.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
