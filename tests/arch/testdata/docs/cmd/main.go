// Command x has a form of its own.
package main

func main() {}
