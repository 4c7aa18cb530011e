// Package nft makes the rules of the firewall that turn connections to the sidecar, in one table of their own: over
// netlink, so that no other program is needed, or as a script to read. Putting them there twice is putting them there once.
// It touches no other table. Start at Rules.
package nft
