// For `tsc` and editors only. What the page looks up by id or selector is some kind of element that HTML names and
// the compiler cannot see; these properties of the several kinds are therefore taken as given.
interface Element {
  [property: string]: any;
}
interface EventTarget {
  closest: any;
  matches: any;
}
