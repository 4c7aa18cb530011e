// Package size is read with limits of 6 and 30 lines.
package size // want `31 lines in a file, at most 30: perhaps two rooms`

func six() int {
	a := 1
	b := 2
	c := 3
	return a + b + c
}

func seven() int { // want `7 lines in function seven, at most 6`
	a := 1
	b := 2
	c := 3
	d := 4
	return a + b + c + d
}

type t struct{}

func (t) method() int { // want `7 lines in function method, at most 6`
	a := 1
	b := 2
	c := 3
	d := 4
	return a + b + c + d
}

//
//
// The file ends one line too late.
