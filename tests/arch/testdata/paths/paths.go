// Package paths was written in somebody's home.
package paths

const journal = "/home/somebody/journal" // want `an absolute path of one machine`
