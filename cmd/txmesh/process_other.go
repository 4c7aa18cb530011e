//go:build !linux

package main

import "syscall"

// ownGroup leaves a child where it is: there Ctrl-C reaches parent and child, and both end.
func ownGroup() *syscall.SysProcAttr { return nil }
