// This package is about chatting.
package chatty // want `the doc comment begins with Package chatty and says what it does`
