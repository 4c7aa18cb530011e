// Package good is documented in one of its files.
package good
