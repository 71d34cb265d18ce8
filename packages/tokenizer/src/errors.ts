/** Bad input: options, vocabularies, files or ids that do not fit; the message names what and says how to mend it. */
export class TokenizerError extends Error {
  override readonly name = "TokenizerError";
}
