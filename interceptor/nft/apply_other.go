//go:build !linux

package nft

import "errors"

var errLinux = errors.New("rules of the firewall are made on Linux only")

// Apply needs Linux.
func (Rules) Apply() error { return errLinux }

// Clean needs Linux.
func Clean() error { return errLinux }
