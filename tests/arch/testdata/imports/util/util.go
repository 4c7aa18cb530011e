// Package util has no place in the table.
package util // want `package util is not in the table of arrows: say in tests/arch what it may import`
